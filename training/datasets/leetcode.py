"""What LeetCode puts around an answer, and its solutions and tests rely on."""

# Before the answer: what its editor has imported, and its two classes.
PREAMBLE = """\
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from string import *
from typing import *
import collections, functools, heapq, itertools, math, random, re, string
inf = float("inf")
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
"""

# Behind the answer, which must not replace them: what tests make nodes of, and compare them by.
# A tree is written by levels, with None for a child that is not there.
SETUP = """\
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def tree_node(values):
    if not values or values[0] is None:
        return None
    root = TreeNode(values[0])
    level, rest = [root], iter(values[1:])
    for node in level:
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                child = TreeNode(value)
                setattr(node, side, child)
                level.append(child)
    return root
def is_same_list(one, other):
    while one is not None and other is not None:
        if one.val != other.val:
            return False
        one, other = one.next, other.next
    return one is other
def is_same_tree(one, other):
    if one is None or other is None:
        return one is other
    return (
        one.val == other.val
        and is_same_tree(one.left, other.left)
        and is_same_tree(one.right, other.right)
    )
"""
