"""Who is told what becomes of the spans."""


class Watcher:
    """Is told from the exporter's thread. This one stays silent, for a program in which there is a client."""

    def sent(self, spans: int) -> None: ...

    def lost(self, spans: int) -> None: ...

    def away(self, why: str) -> None:
        """Called once each time that the collector goes."""

    def back(self) -> None: ...
