class BaseField:
    name: str
    is_default: bool
