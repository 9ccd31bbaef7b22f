"""Training of judges that look before they judge: vision-language reward models with tools, by SFT and two-stage GRPO on Ray."""

__version__ = "0.1.0"
