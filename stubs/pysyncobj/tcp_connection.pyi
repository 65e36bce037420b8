class TcpConnection:
    encryptor: object
    recvRandKey: object
    _TcpConnection__readBuffer: bytes
    def _TcpConnection__processParseMessage(self) -> object: ...
