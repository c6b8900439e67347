"""Searches through a policy server: many at once against one by one, and beside `its_hub`."""
