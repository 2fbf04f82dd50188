"""What drafts for the sequences of a model."""

from collections.abc import Sequence

from edgelm.runtime.engines.engine_session import EngineSession
from edgelm.runtime.engines.onnxruntime.host.assistant_engine import AssistantEngine
from edgelm.runtime.engines.onnxruntime.ort import OrtEngine
from edgelm.runtime.engines.session import Session
from edgelm.runtime.speculation.drafts.assistant_draft import AssistantDraft
from edgelm.runtime.speculation.drafts.draft_model import Draft, DraftModel
from edgelm.runtime.speculation.drafts.head_draft import HeadDraft


def drafts_for(sessions: Sequence[Session], drafts: Sequence[Session]) -> list[Draft]:
    """What drafts for each of a model's sessions, over its draft's session.

    Without drafts, the model does not keep the hidden states that one would read.
    """
    if not drafts:
        for session in sessions:
            if isinstance(session, EngineSession) and isinstance(session.engine, OrtEngine):
                session.engine.hidden = None
    return [_draft_for(*pair) for pair in zip(sessions, drafts, strict=False)]


def _draft_for(session: Session, draft: Session) -> Draft:
    engine = session.engine if isinstance(session, EngineSession) else None
    if isinstance(engine, OrtEngine) and engine.hidden and isinstance(draft, EngineSession):
        if isinstance(draft.engine, AssistantEngine):
            return AssistantDraft(draft, engine, session.vocab_size)
        if isinstance(draft.engine, OrtEngine) and draft.engine.is_head:
            return HeadDraft(draft, engine.hidden, session.vocab_size)
    return DraftModel(draft, session.vocab_size)
