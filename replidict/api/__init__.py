"""The public interface of the dict."""
