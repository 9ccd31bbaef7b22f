"""From questions with their right answers to answers to judge: flawed answers are asked for, sifted, and told apart by content alone.

questions -> replies (what a model wrote) -> answers (those that can be used) -> rows, balanced -> parquet
"""
