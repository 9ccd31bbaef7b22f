"""The paper's findings on this machine: reward designs side by side on a mixed task, over several seeds."""
