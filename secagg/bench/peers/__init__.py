"""Others, and ours beside them: each is a site, a server and a reader, in processes of their own."""
