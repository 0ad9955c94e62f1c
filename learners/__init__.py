"""What trains: pure losses and advantages, SFT, GRPO, and the recipes that run them."""
