import copy
import importlib
import pickle

import peft
import pytest
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners import mixed
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK, check_hotswap_configs_compatible

from peft_space import SpaceConfig, SpaceModel, _peft
from peft_space.hub import push
from tests.adapters import shake, space
from tests.tiny import tiny_llama


def test_the_member_behaves_like_any_other():
    member = PeftType.SPACE
    assert member is PeftType("SPACE") is PeftType["SPACE"] is _peft.SPACE
    assert member == "SPACE" and member.value == "SPACE" and member.name == "SPACE"
    assert member in list(PeftType) and hash(member) == hash("SPACE")
    assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
    assert member != PeftType.LORA


def test_every_table_knows_the_method():
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING["SPACE"] is SpaceConfig
    assert peft.PEFT_TYPE_TO_TUNER_MAPPING["SPACE"] is SpaceModel
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING["SPACE"] == "lora_"
    assert mixed.COMPATIBLE_TUNER_TYPES.count(PeftType.SPACE) == 1
    assert CONFIG_KEYS_TO_CHECK[PeftType.SPACE] == CONFIG_KEYS_TO_CHECK[PeftType.LORA]
    check_hotswap_configs_compatible(SpaceConfig(), SpaceConfig())


def test_registering_again_changes_nothing():
    members, compatible = list(PeftType), mixed.COMPATIBLE_TUNER_TYPES
    importlib.reload(_peft)
    _peft.register(SpaceConfig, SpaceModel)
    _peft.register(SpaceConfig, SpaceModel)
    assert list(PeftType) == members
    assert compatible == mixed.COMPATIBLE_TUNER_TYPES
    assert _peft.SPACE is PeftType.SPACE


def test_another_method_of_that_name_is_refused():
    foreign = type("SpaceConfig", (LoraConfig,), {"__module__": "elsewhere"})
    with pytest.raises(ImportError, match="must not know another method called SPACE"):
        _peft.register(foreign, SpaceModel)


def test_base_modules_do_not_see_adapters():
    before = [name for name, _ in tiny_llama().named_modules()]
    parameters = [name for name, _ in tiny_llama().named_parameters()]
    model = space(tiny_llama())
    model.add_adapter("other", SpaceConfig())
    base = model.get_base_model()
    assert [name for name, _ in _peft.base_modules(base)] == before
    assert [name for name, _ in _peft.base_parameters(base)] == parameters


def test_merged_adapters_are_seen():
    model = shake(space(tiny_llama()))
    assert _peft.merged_adapters(model.get_base_model()) == set()
    model.merge_adapter()
    assert _peft.merged_adapters(model.get_base_model()) == {"default"}


def test_publishing_is_wrapped_once_however_often_it_is_registered():
    plain = PeftModel.push_to_hub.before_peft_space
    importlib.reload(push)
    assert PeftModel.push_to_hub.before_peft_space is plain and not hasattr(plain, "before_peft_space")
