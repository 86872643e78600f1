"""What the server tells about itself: metrics, traces and logs. Never prompts or tokens."""
