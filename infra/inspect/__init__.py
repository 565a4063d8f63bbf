"""The reading side of the tools: topics from an offset or a time, decoded; tasks, dead letters and journals made of them. Changes nothing."""
