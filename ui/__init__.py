"""hive-ui, the operator's web server: renders and posts, owns nothing."""
