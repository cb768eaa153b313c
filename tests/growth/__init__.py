"""The figures of `dfs bench` in a large cluster, beside those of a small one."""
