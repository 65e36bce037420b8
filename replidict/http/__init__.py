"""The store over HTTP: `replidict serve`. Needs the extra `replidict[serve]`; nothing else imports it."""
