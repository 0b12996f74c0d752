"""Bank categories and classes of the training set."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import Metadata, MetadataCatalog

from mosaicbank.detectron2.categories import CategoryMap, DatasetClasses

CLASSES = DatasetClasses(("cat", "fire engine", "dog"), (4, 9, 11), True)


def rows(*pairs):
    return [{"id": i, "name": n} for i, n in pairs]


def test_a_table_in_another_order_and_with_other_categories():
    found = CategoryMap(rows((11, "dog"), (2, "yak"), (9, "Fire_Engine")), CLASSES)
    assert found.to_class.tolist() == [2, -1, 1]
    assert found.to_bank.tolist() == [-1, 2, 0]
    assert not found.complete and found.shared == 2
    assert CategoryMap(rows((4, "cat")), CLASSES).complete


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows((4, "cat"), (9, "dog")), r"'dog' with id 9 \(there it has id 11\)"),
        (rows((4, "cat"), (9, "yak")), r"'yak' with id 9 \(there that id is 'fire engine'\)"),
        (rows((1, "yak"), (2, "gnu")), r"categories of the training set \('cat'"),
    ],
)
def test_tables_that_do_not_match_are_refused(table, message):
    with pytest.raises(ValueError, match=f"some/bank: expected .*{message}"):
        CategoryMap(table, CLASSES, where="some/bank")


def test_names_alone():
    table = rows((1, "dog"), (2, "cat"), (3, "yak"))
    assert CategoryMap(table, CLASSES, match="name").to_class.tolist() == [2, 0, -1]
    # A training set that does not tell its ids is matched by names, whatever is asked for.
    unknown = DatasetClasses(CLASSES.names, (1, 2, 3), False)
    assert CategoryMap(table, unknown).to_class.tolist() == [2, 0, -1]


def test_classes_from_metadata():
    meta = Metadata(name="m", thing_classes=["a", "b"])
    with_ids = Metadata(
        name="m", thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 1, 3: 0}
    )
    assert DatasetClasses.from_metadata(with_ids).ids == (3, 7)
    assert not DatasetClasses.from_metadata(meta).ids_known
    with pytest.raises(ValueError, match="expected thing_classes"):
        DatasetClasses.from_metadata(Metadata(name="empty"))
    bad = Metadata(name="m", thing_classes=["a"], thing_dataset_id_to_contiguous_id={7: 1, 3: 0})
    with pytest.raises(ValueError, match="reach every class"):
        DatasetClasses.from_metadata(bad)


def test_lvis_as_detectron2_has_it():
    """LVIS v1 in Detectron2: 1203 names, no id mapping, the class is the id less one."""
    from detectron2.data.datasets.lvis import get_lvis_instances_meta

    name = "mosaicbank_lvis_test"
    MetadataCatalog.get(name).set(evaluator_type="lvis", **get_lvis_instances_meta("lvis_v1_train"))
    classes = DatasetClasses.from_metadata(MetadataCatalog.get(name))
    assert len(classes.names) == 1203 and classes.ids == tuple(range(1, 1204))
    assert classes.ids_known
    bank = [{"id": 1203, "name": classes.names[1202]}, {"id": 1, "name": classes.names[0]}]
    assert CategoryMap(bank, classes).to_class.tolist() == [1202, 0]
    with pytest.raises(ValueError, match="with id 5"):
        CategoryMap([{"id": 5, "name": classes.names[0]}], classes)


def test_the_table_of_a_new_bank():
    table = CLASSES.table(np.array([0, 11, 101]))
    assert [row["frequency"] for row in table] == ["r", "c", "f"]
    assert [row["id"] for row in table] == [4, 9, 11]
    assert table[2]["image_count"] == 101
