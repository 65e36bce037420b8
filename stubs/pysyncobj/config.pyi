class FAIL_REASON:
    SUCCESS: int

class SyncObjConf:
    def __init__(
        self,
        *,
        autoTick: bool = ...,
        useFork: bool = ...,
        journalFile: str | None = ...,
        fullDumpFile: str | None = ...,
        appendEntriesUseBatch: bool = ...,
        connectionRetryTime: float = ...,
    ) -> None: ...
