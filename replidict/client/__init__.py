"""A program that talks to a node from outside, over the nodes' own protocol."""
