"""What stages share: params, files, prompts, engines, measurements."""
