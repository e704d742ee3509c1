"""Published claims: each a statement, the experiment that tries it, and the test that decides it."""
