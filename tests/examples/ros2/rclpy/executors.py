"""The exception that `spin` raises when the node's context is shut down."""


class ExternalShutdownException(Exception):
    pass
