from __future__ import annotations

import numpy as np
import torch

from backend.distributed import TensorParallel
from backend.steps import RowSetup, ScheduledRow, StepPlan
from backend.worker.input_builder import InputBuilder
from backend.worker.worker import Worker
from tests.backend.step_driver import GREEDY
from tests.backend.tiny_model import tiny_source


def new_builder() -> InputBuilder:
    source = tiny_source(block_size=16, session_len=100)
    worker = Worker(source, source.engine, TensorParallel())
    worker.allocate_kv(40)
    return worker.runner.inputs


def setup(row: int, token_ids: range, blocks: tuple[int, ...]) -> RowSetup:
    return RowSetup(row, tuple(token_ids), len(token_ids), blocks, GREEDY, (2,), 0)


def test_a_mixed_plan_becomes_the_tensors_of_the_step() -> None:
    builder = new_builder()
    plan = StepPlan(0, (setup(5, range(10, 30), (7, 3)), setup(2, range(40, 60), (9,)), setup(0, range(60, 70), ())), (
        ScheduledRow(5, 19, 1, (), True), ScheduledRow(2, 14, 4, (30,), False), ScheduledRow(0, 0, 3, (4,), True)))
    batch, sampling = builder.build(plan)
    assert batch.token_ids.tolist() == [29, 54, 55, 56, 57, 60, 61, 62]
    assert batch.positions.tolist() == [19, 14, 15, 16, 17, 0, 1, 2]
    assert batch.slot_mapping.tolist() == [3 * 16 + 3, 9 * 16 + 14, 9 * 16 + 15, 30 * 16, 30 * 16 + 1, 64, 65, 66]
    assert batch.block_tables.tolist() == [[7, 3], [9, 30], [4, 0]]
    assert batch.context_lens.tolist() == [20, 18, 3]
    assert batch.query_start.tolist() == [0, 1, 5, 8]
    assert batch.logits_indices.tolist() == [0, 7]
    assert (batch.num_decodes, batch.max_query_len, batch.max_context_len) == (1, 4, 20)
    assert sampling.slots.tolist() == [5 * 101 + 20, 3]
    assert (batch.token_ids.dtype, batch.block_tables.dtype, batch.context_lens.dtype, batch.query_start.dtype) == (
        torch.int64, torch.int32, torch.int32, torch.int32)


def test_a_decode_row_takes_the_id_that_was_sampled_on_the_device() -> None:
    builder = new_builder()
    builder.build(StepPlan(0, (setup(1, range(3, 6), (0,)),), (ScheduledRow(1, 0, 3, (), True),)))
    builder.tables.token_ids[1, 3] = 77
    batch, _ = builder.build(StepPlan(1, (), (ScheduledRow(1, 3, 1, (), True),)))
    assert batch.token_ids.tolist() == [77]
    assert (batch.num_decodes, batch.max_query_len) == (1, 0)


def test_a_new_sequence_replaces_everything_the_row_held() -> None:
    builder = new_builder()
    builder.build(StepPlan(0, (setup(1, range(40), (1, 2, 3)),), (ScheduledRow(1, 0, 40, (), True),)))
    batch, _ = builder.build(StepPlan(1, (setup(1, range(50, 54), ()),), (ScheduledRow(1, 0, 4, (8,), True),)))
    assert batch.block_tables.tolist() == [[8]]
    assert builder.tables.block_tables[1].tolist() == [8] + [0] * 6
    assert batch.token_ids.tolist() == [50, 51, 52, 53]


def test_blocks_are_appended_behind_those_of_earlier_steps() -> None:
    builder = new_builder()
    builder.build(StepPlan(0, (setup(3, range(16), ()),), (ScheduledRow(3, 0, 16, (6,), True),)))
    batch, _ = builder.build(StepPlan(1, (), (ScheduledRow(3, 16, 1, (11, 12), True),)))
    assert batch.slot_mapping.tolist() == [11 * 16]
    assert builder.tables.block_tables[3, :4].tolist() == [6, 11, 12, 0]


def test_a_plan_that_samples_nothing_has_no_sampling_batch() -> None:
    batch, sampling = new_builder().build(
        StepPlan(0, (setup(0, range(8), (0,)),), (ScheduledRow(0, 0, 4, (), False),)))
    assert sampling is None and batch.logits_indices.numel() == 0


def test_a_full_sequence_can_still_sample_its_last_token() -> None:
    builder = new_builder()
    setups = (setup(0, range(90), tuple(range(7))),)
    _, sampling = builder.build(StepPlan(0, setups, (ScheduledRow(0, 0, 100, (), True),)))
    assert sampling.slots.tolist() == [100]
    assert np.all(builder.tables.num_blocks[:2] == [7, 0])
