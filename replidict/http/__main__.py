"""`python -m replidict.http` is `replidict serve`."""

from replidict.http.command import serve

if __name__ == "__main__":
    serve()
