"""Prompts under parameter sets, side by side: answers, scores, votes, report."""
