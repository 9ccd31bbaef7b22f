"""The demo's own task: digits that only the zoom tool can read, the small judge, its pre-training and its teacher."""
