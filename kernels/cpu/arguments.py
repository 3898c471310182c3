"""What the C functions take: the structs of `ambidex.h`, field by field, and the codes of dtypes."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The code of each dtype that the kernels know (`ambidex_dtype`)."""


class LinearArgs(ctypes.Structure):
    """`ambidex_linear_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
        ("gated", c_int32),
        ("num_rows", c_int64),
        ("num_outputs", c_int64),
        ("num_inputs", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("bias", c_void_p),
        ("norm_weight", c_void_p),
        ("bias_dtype", c_int32),
        ("norm_dtype", c_int32),
        ("norm_eps", c_float),
        ("reserved", c_int32),
    ]


class NormArgs(ctypes.Structure):
    """`ambidex_norm_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_rows", c_int64),
        ("num_inputs", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("sum_out", c_void_p),
        ("sum_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("weight", c_void_p),
        ("weight_dtype", c_int32),
        ("eps", c_float),
    ]


class QkvArgs(ctypes.Structure):
    """`ambidex_qkv_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_tokens", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_size", c_int64),
        ("rotary_size", c_int64),
        ("qkv", c_void_p),
        ("qkv_stride", c_int64),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("norm_dtype", c_int32),
        ("norm_eps", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("rotation_stride", c_int64),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("num_pages", c_int64),
        ("page_size", c_int64),
        ("page_stride", c_int64),
        ("slots", c_void_p),
    ]


class AttentionArgs(ctypes.Structure):
    """`ambidex_attention_args`."""

    _fields_ = [
        ("level", c_int32),
        ("dtype", c_int32),
        ("num_requests", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_size", c_int64),
        ("num_tokens", c_int64),
        ("query_start", c_void_p),
        ("context_lengths", c_void_p),
        ("page_table", c_void_p),
        ("max_pages", c_int64),
        ("q", c_void_p),
        ("q_stride", c_int64),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("num_pages", c_int64),
        ("page_size", c_int64),
        ("page_stride", c_int64),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
    ]


class UnpackArgs(ctypes.Structure):
    """`ambidex_unpack_args`."""

    _fields_ = [
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("num_outputs", c_int64),
        ("num_inputs", c_int64),
        ("panels", c_void_p),
        ("ids", c_void_p),
        ("num_ids", c_int64),
        ("out", c_void_p),
        ("out_stride", c_int64),
    ]


class SampleArgs(ctypes.Structure):
    """`ambidex_sample_args`."""

    _fields_ = [
        ("level", c_int32),
        ("num_top", c_int32),
        ("num_rows", c_int64),
        ("num_columns", c_int64),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("ids", c_void_p),
        ("logprobs", c_void_p),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
        ("allowed", c_void_p),
        ("mask", c_void_p),
        ("tokens", c_void_p),
        ("tokens_stride", c_int64),
        ("prompt_lengths", c_void_p),
        ("lengths", c_void_p),
        ("repetition", c_void_p),
        ("presence", c_void_p),
        ("frequency", c_void_p),
        ("temperature", c_void_p),
        ("seeds", c_void_p),
        ("positions", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("min_p", c_void_p),
    ]


class Call(ctypes.Structure):
    """`ambidex_call`."""

    _fields_ = [("function", c_int32), ("args", c_void_p)]
