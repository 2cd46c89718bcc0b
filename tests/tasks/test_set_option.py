from __future__ import annotations

import pytest

from regard.errors import UserError
from regard.tasks.classification import Classification
from regard.tasks.set_option import share_out


def test_settings_go_to_the_task_the_network_or_the_recipe():
    given = {"image_size": "16", "drop_path": "0.1", "ema": "0.9", "warmup": "0.2", "augment": "none"}
    assert share_out(given, Classification, "davit") == (
        {"image_size": "16", "augment": "none"},
        {"drop_path": "0.1"},
        {"ema": "0.9", "warmup": "0.2"},
    )


def test_what_nobody_has_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no setting 'layer_decai': did you mean layer_decay\?"):
        share_out({"layer_decai": "1"}, Classification, "davit")
    with pytest.raises(UserError, match=r"classification has augment, .*; davit has .*; the recipe has batch, "):
        share_out({"zzzz": "1"}, Classification, "davit")
