import pytest

from flatwise.tasks import check_data_name, check_model_name, data_names, model_names


@pytest.mark.parametrize(
    "name",
    ["digits", "fashion-mnist", "cifar10", "cifar100", "svhn", "tinyshakespeare", "text:a", "folder:~/a", "mine:load"],
)
def test_data_sets_are_known(name):
    check_data_name(name)


@pytest.mark.parametrize(
    "name", ["mlp", "cnn6", "resnet18", "wrn-16-4", "vit-b-16", "vit-2-32", "transformer", "torchvision.models:vgg11"]
)
def test_models_are_known(name):
    check_model_name(name)


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("digit", "digits"), ("FashionMNIST", "fashion-mnist"), ("cifar-10", "cifar10")]
)
def test_an_unknown_data_set_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"no data set is called '{wrong}': did you mean '{nearest}'"):
        check_data_name(wrong)


@pytest.mark.parametrize("name", ["folder:", ":load", "", "zzz"])
def test_a_name_like_no_other_lists_all(name):
    with pytest.raises(ValueError, match=r"there are digits, .*, folder:PATH, module:function"):
        check_data_name(name)


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no model is called 'resnet-18': did you mean 'resnet18'"):
        check_model_name("resnet-18")


def test_every_name_has_one_line():
    for name, line in data_names() + model_names():
        assert name
        assert 20 < len(line) < 110
        assert "\n" not in line
