"""Methods under data similarity on real data: gap against rounds, messages, transmission time and bytes."""
