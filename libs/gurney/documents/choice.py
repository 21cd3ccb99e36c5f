"""Which database keeps the documents, by the settings."""

from gurney.documents.port import Documents
from gurney.settings import Settings

#: Name of the file in the data folder.
FILE = "documents.sqlite"


def documents_of(settings: Settings) -> Documents:
    """Return MongoDB where `mongo_url` is set, else a file in `data`, which is this process's alone; not opened yet."""
    if settings.mongo_url is not None:
        from gurney.documents.mongo import MongoDocuments  # its driver is not loaded for nothing

        return MongoDocuments(settings.mongo_url.get_secret_value(), settings.mongo_database)
    from gurney.documents.sqlite import SqliteDocuments

    return SqliteDocuments(settings.data / FILE, sync=settings.sync)
