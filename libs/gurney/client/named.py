"""What MAPs and payloads share: names."""

from gurney.client.http import Http, Json, segment


class Named:
    """A kind of things that can be named; `_path` is its list."""

    _path: str

    def __init__(self, http: Http) -> None:
        self._http = http

    def _of(self, ref: str) -> str:
        return f"{self._path}/{segment(ref)}"

    async def get(self, ref: str) -> Json:
        """Return one by id or name."""
        answer: Json = await self._http.json("GET", self._of(ref))
        return answer

    async def rename(self, ref: str, name: str) -> Json:
        answer: Json = await self._http.json("PUT", f"{self._of(ref)}/name", json={"name": name})
        return answer

    async def unname(self, ref: str) -> None:
        await self._http.json("DELETE", f"{self._of(ref)}/name")

    async def delete(self, ref: str) -> None:
        """Delete (a MAP: unregister)."""
        await self._http.json("DELETE", self._of(ref))
