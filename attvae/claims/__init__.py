"""The paper's claims, put to the test: a study of many runs, and a page that says what they show."""
