"""Which call of a LightLLM layer belongs to which operator, for every class of layers: what the hooks have to find.

A table is operator → names of calls. ``name.mm`` is a product with the weight ``name``; ``name`` alone is the weight or a kernel.
A class differs from its table in the operators that stand beside it; ``None`` is an operator that it does not have.
"""

# v1.2.0 and later ----------------------------------------------------------------------------------------------------

DENSE = {
    "embedding": "wte_weight_",
    "attn_norm": "att_norm_weight_",
    "qkv_proj": "q_proj.mm kv_proj.mm rotary_emb_fwd",
    "kv_write": "copy_kv_to_mem_manager",
    "attention": "prefill_att decode_att",
    "o_proj": "o_proj.mm",
    "residual": "add_",
    "ffn_norm": "ffn_norm_weight_",
    "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm",
    "lm_head": "cumsum sub index setitem final_norm_weight_ lm_head_weight_",
    "gap": "contiguous",  # of the logits, behind the model
}
MROPE = {"qkv_proj": "q_proj.mm kv_proj.mm mrope_triton_fused"}
GELU = {"ffn": "gate_up_proj.mm gelu down_proj.mm"}
NO_ROPE = {"qkv_proj": "q_proj.mm kv_proj.mm"}
QK_NORM = {"qkv_proj": "q_proj.mm kv_proj.mm qk_norm_weight_ rotary_emb_fwd"}
# A mixture of experts is one operator, its gate and its shared experts included.
MOE = {"ffn": "moe_gate.mm experts.experts"}
MLA = {
    "qkv_proj": "q_weight_.mm kv_a_proj_with_mqa_.mm kv_a_layernorm_ rotary_emb_fwd",
    "attention": "sample_kv contiguous cc_kv_b_proj_.mm prefill_att k_b_proj_.bmm decode_att",
    "o_proj": "o_weight_.mm reshape",
    # The first layer is dense; the others add their shared experts.
    "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm to moe_gate.mm experts.experts add_",
}
INDEXER = (
    "wq_b_proj_.mm wk_proj_.mm k_norm_ rotary_emb_fwd hadamard_transform act_quant destindex_copy_indexer_ks "
    "weights_proj_.mm mul extract_indexer_ks fp8_mqa_logits fast_topk_v2 ne add where trans_topk_index_to_mem_index"
)
DEEPSTACK = {"other": "apply_deepstack_features"}
LINEAR = {
    "qkv_proj": "linear_in_proj.mm qkvo_gate_proj.mm qk_norm_weight_ rotary_emb_fwd",
    "o_proj": "contiguous linear_norm linear_out_proj.mm sigmoid_mul_ o_proj.mm",
    "ffn": "moe_gate.mm shared_expert_gate.mm experts.experts",
}
NO_ATTENTION = dict.fromkeys(("attn_norm", "qkv_proj", "kv_write", "attention", "o_proj"))
RMS_OF_TORCH = "to pow mean add rsqrt mul"
NORMS_OF_GEMMA = "pre_feedforward_layernorm_weight_ post_feedforward_layernorm_weight_"

MAIN = {
    "bloom.BloomTransformerLayerInfer": {**NO_ROPE, **GELU},
    "deepseek2.Deepseek2TransformerLayerInfer": MLA,
    "deepseek3_2.Deepseek3_2TransformerLayerInfer": {
        **MLA, "qkv_proj": "qkv_a_proj_with_mqa_.mm rmsnorm_forward q_b_proj_.mm rotary_emb_fwd",
        "attention": "k_b_proj_.bmm cat prefill_att decode_att", "other": INDEXER,
    },
    # Conversions that no add stands beside are no operator's.
    "gemma3.Gemma3TransformerLayerInfer": {
        "qkv_proj": "q_proj.mm k_proj.mm v_proj.mm cat float q_norm_weight_ k_norm_weight_ to setitem rotary_emb_fwd",
        "ffn_norm": f"ffn_norm_weight_ {NORMS_OF_GEMMA}", "ffn": "gate_proj.mm up_proj.mm gelu mul down_proj.mm",
        "residual": "add_ float to", "other": "float to",
    },
    "gemma4.Gemma4TransformerLayerInfer": {
        "qkv_proj": "q_proj.mm q_norm_weight_ k_proj.mm v_proj.mm k_norm_weight_ rmsnorm_forward rotary_emb_fwd mul "
                    "reshape zero_ setitem",
        "attention": "context_attention_fwd_gemma4_mm prefill_att decode_att",
        "ffn_norm": f"ffn_norm_weight_ {NORMS_OF_GEMMA} post_feedforward_layernorm_1_weight_ "
                    "pre_feedforward_layernorm_2_weight_ post_feedforward_layernorm_2_weight_",
        "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm rmsnorm_forward mul to moe_gate.mm experts.experts",
        "other": "per_layer_input_gate_.mm gelu mul per_layer_projection_.mm post_per_layer_input_norm_weight_ add_ mul_",
    },
    "gemma_2b.Gemma_2bTransformerLayerInfer": {"ffn": "gate_up_proj.mm gelu_and_mul_fwd down_proj.mm"},
    "glm4_moe_lite.Glm4MoeLiteTransformerLayerInfer": MLA,
    "gpt_oss.GptOssTransformerLayerInfer": {**MOE, "attn_norm": RMS_OF_TORCH, "ffn_norm": RMS_OF_TORCH},
    "llama.LlamaTransformerLayerInfer": {},
    "mistral.MistralTransformerLayerInfer": {},
    "mistral_mtp.MistralMTPTransformerLayerInfer": NO_ATTENTION,
    "mixtral.MixtralTransformerLayerInfer": MOE,
    "phi3.Phi3TransformerLayerInfer": {},
    "qwen.QwenTransformerLayerInfer": {},
    "qwen2_vl.Qwen2VLTransformerLayerInfer": MROPE,
    "qwen3.Qwen3TransformerLayerInfer": QK_NORM,
    "qwen3_5.Qwen35TransformerLayerInfer": {
        **LINEAR, "qkv_proj": "linear_in_proj.mm qkvo_gate_proj.mm qk_norm_weight_ mrope_triton_fused",
    },
    "qwen3_moe.Qwen3MOETransformerLayerInfer": {**MOE, "qkv_proj": "qkv_proj.mm qk_norm_weight_ rotary_emb_fwd"},
    "qwen3_moe_mtp.Qwen3MOEMTPTransformerLayerInfer": {**NO_ATTENTION, **MOE},
    "qwen3_omni_moe_thinker.Qwen3OmniMOETransformerLayerInfer": {
        **MOE, **DEEPSTACK, "qkv_proj": "qkv_proj.mm qk_norm_weight_ mrope_triton_fused",
    },
    "qwen3_vl.Qwen3VLTransformerLayerInfer": {**DEEPSTACK, "qkv_proj": "q_proj.mm kv_proj.mm qk_norm_weight_ mrope_triton_fused"},
    "qwen3_vl_moe.Qwen3VLMOETransformerLayerInfer": {
        **MOE, **DEEPSTACK, "qkv_proj": "qkv_proj.mm qk_norm_weight_ mrope_triton_fused",
    },
    "qwen3next.Qwen3NextTransformerLayerInfer": LINEAR,
    "stablelm.StablelmTransformerLayerInfer": {},
    "starcoder.StarcoderTransformerLayerInfer": {**NO_ROPE, **GELU},
    "starcoder2.Starcoder2TransformerLayerInfer": {"ffn": "up_proj.mm gelu down_proj.mm"},
    # Before and after the layers.
    "bloom.BloomPreLayerInfer": {"embedding": "wte_weight_ pre_norm_weight_"},
    "deepseek_mtp.Deepseek3MTPPreLayerInfer": {"embedding": "wte_weight_ enorm_weight_ hnorm_weight_ cat eh_proj_weight_.mm"},
    "gemma3.Gemma3PreLayerInfer": {"embedding": "setitem float mul multimodal_emb to wte_weight_"},
    "gemma4.Gemma4PreLayerInfer": {
        "embedding": "multimodal_emb ne masked_fill wte_weight_ mul embed_tokens_per_layer_weight_ "
                     "per_layer_model_projection_weight_.mm reshape per_layer_projection_norm_weight_ add mul_",
    },
    "gemma_2b.Gemma_2bPreLayerInfer": {"embedding": "wte_weight_ mul"},
    "llama.LlamaPreLayerInfer": {},
    "mistral_mtp.MistralMTPPreLayerInfer": {
        "embedding": "wte_weight_ enorm_weight_ final_norm_weight_ hnorm_weight_ cat eh_proj_weight_.mm",
    },
    "qwen3_5_mtp.Qwen3_5MTPPreLayerInfer": {
        "embedding": "multimodal_emb wte_weight_ main_norm_weight_ enorm_weight_ hnorm_weight_ cat eh_proj_weight_.mm",
    },
    "qwen3_vl.Qwen3VLMultimodalPreLayerInfer": {"embedding": "multimodal_emb wte_weight_"},
    "qwen_vl.LlamaMultimodalPreLayerInfer": {"embedding": "multimodal_emb wte_weight_"},
    "starcoder.StarcoderPreLayerInfer": {"embedding": "wte_weight_ wpe_weight_ add_"},
    "bloom.BloomPostLayerInfer": {},
    "gemma3.Gemma3PostLayerInfer": {},
    "gemma4.Gemma4PostLayerInfer": {"lm_head": f"{DENSE['lm_head']} truediv tanh mul"},
    "internlm2_reward.Internlm2RewardPostLayerInfer": {
        "lm_head": "cumsum sub index setitem final_norm_weight_ score_head_.mm",
    },
    "llama.LlamaPostLayerInfer": {},
    "mistral_mtp.MistralMTPPostLayerInfer": {},
    "qwen2_reward.Qwen2RewardPostLayerInfer": {
        "lm_head": "cumsum sub index setitem final_norm_weight_ score_up_weight_.mm relu score_down_weight_.mm",
    },
}  # fmt: skip

# What torch or LightLLM's group is asked for, by how the ranks share the work.
ALL_REDUCES = {
    "all_reduce embedding": "all_reduce", "all_reduce attention": "all_reduce", "all_reduce ffn": "all_reduce",
    "all_gather lm_head": "all_gather",
}  # fmt: skip
SPLIT_TOKENS = {
    "all_reduce embedding": "all_reduce", "all_gather attention": "all_gather_into_tensor",
    "reduce_scatter attention": "reduce_scatter_tensor", "all_gather ffn": "all_gather_into_tensor",
    "reduce_scatter ffn": "reduce_scatter_tensor", "all_gather lm_head": "all_gather_into_tensor all_gather",
}  # fmt: skip
SPLIT_TOKENS_CALLS = {"embedding": "sp_pad_copy"}
NO_LOGITS = {"all_gather lm_head": None}  # a score is not gathered
REWARDS = ("internlm2_reward.Internlm2RewardPostLayerInfer", "qwen2_reward.Qwen2RewardPostLayerInfer")
COLLECTIVES_2025 = dict.fromkeys(REWARDS, {"tp2": NO_LOGITS})
COLLECTIVES = {
    # The tokens' indices are gathered inside the attention.
    "deepseek3_2.Deepseek3_2TransformerLayerInfer": {"tp2": {"all_gather attention": "all_gather_into_tensor"}},
    "mistral_mtp.MistralMTPTransformerLayerInfer": {
        "tp2": {"all_reduce attention": None}, "tpsp": {"all_gather attention": None, "reduce_scatter attention": None},
    },
    "mixtral.MixtralTransformerLayerInfer": {"tp2": {"all_reduce ffn": None}, "tpsp": {"reduce_scatter ffn": None}},
    "qwen3_moe_mtp.Qwen3MOEMTPTransformerLayerInfer": {
        "tp2": {"all_reduce attention": None}, "tpsp": {"all_gather attention": None, "reduce_scatter attention": None},
    },
    "qwen3next.Qwen3NextTransformerLayerInfer": {"tpsp": {"all_reduce attention": "all_reduce"}},
    "qwen3_5.Qwen35TransformerLayerInfer": {"tpsp": {"all_reduce attention": "all_reduce"}},
    **dict.fromkeys(  # the features are added to all tokens
        ("qwen3_vl.Qwen3VLTransformerLayerInfer", "qwen3_vl_moe.Qwen3VLMOETransformerLayerInfer",
         "qwen3_omni_moe_thinker.Qwen3OmniMOETransformerLayerInfer"),
        {"tpsp": {"all_gather": "all_gather_into_tensor"}},
    ),
    **dict.fromkeys(REWARDS, {"tp2": NO_LOGITS, "tpsp": {"all_gather lm_head": "all_gather_into_tensor"}}),
}  # fmt: skip
CALLS = {  # beside those of one rank
    "deepseek3_2.Deepseek3_2TransformerLayerInfer": {"tp2": {"other": "contiguous"}, "tpsp": {"other": "contiguous"}},
    **dict.fromkeys(
        ("qwen3_vl.Qwen3VLTransformerLayerInfer", "qwen3_vl_moe.Qwen3VLMOETransformerLayerInfer",
         "qwen3_omni_moe_thinker.Qwen3OmniMOETransformerLayerInfer"),
        {"tpsp": {"other": "sp_pad_copy"}},
    ),
}  # fmt: skip

# v1.1.0 and July 2025 ------------------------------------------------------------------------------------------------

DENSE_2025 = {
    "embedding": "embedding",
    "attn_norm": "rmsnorm_forward",
    "qkv_proj": "q_proj.mm kv_proj.mm rotary_emb_fwd",
    "kv_write": "destindex_copy_kv",
    "attention": "context_attention_fwd token_att_fwd token_softmax_reducev_fwd",
    "o_proj": "o_proj.mm",
    "residual": "add_",
    "ffn_norm": "rmsnorm_forward",
    "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm",
    "lm_head": "cumsum sub index setitem rmsnorm_forward lm_head_weight_.mm",
}
LAYER_NORMS = {"attn_norm": "layernorm_forward", "ffn_norm": "layernorm_forward"}
RMS_OF_GEMMA = "float pow mean add rsqrt mul to"

JULY_2025 = {
    "bloom.BloomTransformerLayerInfer": {
        **LAYER_NORMS, **NO_ROPE, **GELU, "attention": "context_attention_fwd token_attention_fwd",
    },
    "chatglm2.ChatGLM2TransformerLayerInfer": {"ffn": "gate_up_proj.mm silu mul down_proj.mm"},
    # One norm, and one add behind attention and feed-forward.
    "cohere.CohereTransformerLayerInfer": {
        "attn_norm": "layernorm_forward", "ffn_norm": None, "qkv_proj": "q_weight_.mm kv_weight_.mm rotary_emb_fwd",
        "residual": "add add_",
    },
    "deepseek2.Deepseek2TransformerLayerInfer": {
        "qkv_proj": "q_weight_.mm kv_a_proj_with_mqa_.mm rmsnorm_forward rotary_emb_fwd",
        "attention": "sample_kv contiguous cc_kv_b_proj_.mm context_attention_fwd_with_v k_b_proj_.bmm reshape "
                     "gqa_token_decode_attention_flash_decoding",
        "o_proj": "o_weight_.mm reshape",
        "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm moe_gate.mm experts.experts mul_ add_",
    },
    "gemma3.Gemma3TransformerLayerInfer": {
        "attn_norm": RMS_OF_GEMMA, "ffn_norm": RMS_OF_GEMMA, "ffn": "gate_proj.mm up_proj.mm gelu mul down_proj.mm",
        "qkv_proj": f"q_proj.mm k_proj.mm v_proj.mm setitem {RMS_OF_GEMMA} rotary_emb_fwd",
        "residual": "add_ float to", "other": "float to",
    },
    "gemma_2b.Gemma_2bTransformerLayerInfer": {"ffn": "gate_up_proj.mm gelu_and_mul_fwd down_proj.mm"},
    "llama.LlamaTransformerLayerInfer": {},
    "mistral.MistralTransformerLayerInfer": {},
    "mixtral.MixtralTransformerLayerInfer": {"ffn": "moe_gate.mm softmax float topk sum truediv fused_experts_impl"},
    "phi3.Phi3TransformerLayerInfer": {"attention": "context_attention_fwd token_decode_attention_flash_decoding"},
    "qwen.QwenTransformerLayerInfer": {},
    "qwen2_vl.Qwen2VLTransformerLayerInfer": {"qkv_proj": "q_proj.mm kv_proj.mm to reshape mrope_triton setitem"},
    "qwen3.Qwen3TransformerLayerInfer": {"qkv_proj": "q_proj.mm kv_proj.mm reshape rmsnorm_forward setitem rotary_emb_fwd"},
    "qwen3_moe.Qwen3MOETransformerLayerInfer": {
        **MOE, "qkv_proj": "q_proj.mm kv_proj.mm reshape rmsnorm_forward setitem rotary_emb_fwd",
    },
    "stablelm.StablelmTransformerLayerInfer": LAYER_NORMS,
    "starcoder.StarcoderTransformerLayerInfer": {**LAYER_NORMS, **NO_ROPE, **GELU},
    "starcoder2.Starcoder2TransformerLayerInfer": {"ffn": "up_proj.mm gelu down_proj.mm"},
    "bloom.BloomPreLayerInfer": {"embedding": "embedding layernorm_forward"},
    "deepseek_mtp.Deepseek3MTPPreLayerInfer": {"embedding": "embedding rmsnorm_forward cat eh_proj_weight_.mm"},
    "gemma3.Gemma3PreLayerInfer": {"embedding": "setitem multimodal_emb truediv to float mul embedding"},
    "gemma_2b.Gemma_2bPreLayerInfer": {"embedding": "embedding mul"},
    "llama.LlamaPreLayerInfer": {},
    "qwen_vl.LlamaMultimodalPreLayerInfer": {"embedding": "multimodal_emb truediv embedding"},
    "starcoder.StarcoderPreLayerInfer": {"embedding": "embedding add_"},
    "bloom.BloomPostLayerInfer": {
        "lm_head": "cumsum sub index setitem layernorm_forward lm_head_weight_.mm contiguous float reshape",
    },
    "cohere.CoherePostLayerInfer": {
        "lm_head": "cumsum sub index setitem layernorm_forward lm_head_weight_.mm mul contiguous float reshape",
    },
    "gemma3.Gemma3PostLayerInfer": {
        "lm_head": f"cumsum sub index setitem {RMS_OF_GEMMA} final_norm_weight_.float lm_head_weight_.to mm",
    },
    "internlm2_reward.Internlm2RewardPostLayerInfer": {},
    "llama.LlamaPostLayerInfer": {},
    "qwen2_reward.Qwen2RewardPostLayerInfer": {
        "lm_head": "cumsum sub index setitem rmsnorm_forward score_up_bias.score_up_weight.addmm relu "
                   "score_down_bias.score_down_weight.addmm",
    },
}  # fmt: skip
V1_1 = {
    **JULY_2025,
    "deepseek2.Deepseek2TransformerLayerInfer": {
        **JULY_2025["deepseek2.Deepseek2TransformerLayerInfer"],
        "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm moe_gate.mm experts.experts add_",
    },
}  # fmt: skip

# PyPI's 0.0.1 --------------------------------------------------------------------------------------------------------

DENSE_2024 = {
    "embedding": "ge lt logical_or sub setitem wte_weight_.embedding",
    "attn_norm": "rmsnorm_forward",
    "qkv_proj": "q_weight_.mm kv_weight_.mm rotary_emb_fwd",
    "kv_write": "destindex_copy_kv",
    "attention": "context_attention_fwd token_att_fwd token_softmax_reducev_fwd",
    "o_proj": "o_weight_.mm",
    "residual": "add_",  # in decode; a prefill synchronises there, so its adds lie in the gap
    "gap": "add_",
    "ffn_norm": "rmsnorm_forward",
    "ffn": "gate_up_proj.mm silu_and_mul_fwd down_proj.mm",
    "lm_head": "cumsum sub index setitem rmsnorm_forward lm_head_weight_.mm contiguous float reshape",
}
WITH_BIAS = {"qkv_proj": "q_bias_.q_weight_.addmm kv_bias_.kv_weight_.addmm rotary_emb_fwd"}
BIAS_WITHOUT_ROPE = {"qkv_proj": "q_bias_.q_weight_.addmm kv_bias_.kv_weight_.addmm"}
OUT_BIAS = {"o_proj": "o_bias_.o_weight_.addmm"}
TWO_BIASES = {"ffn": "ffn_1_bias_.ffn_1_weight_.addmm gelu ffn_2_bias_.ffn_2_weight_.addmm"}
INT8 = {"ffn": "matmul_dequantize_int8 silu mul"}
INT8_BIAS = {"qkv_proj": "matmul_dequantize_int8 q_bias_.add_ kv_bias_.add_ rotary_emb_fwd"}
LORA = "iadd index setitem"

V0_0_1 = {
    "baichuan13b.Baichuan13bTransformerLayerInfer": {
        "qkv_proj": "q_weight_.mm kv_weight_.mm", "attention": "context_attention_fwd token_attention_fwd",
    },
    "baichuan2_7b.Baichuan2_7bTransformerLayerInfer": {"qkv_proj": "q_weight_.mm kv_weight_.mm float rotary_emb_fwd copy_"},
    "bloom.BloomTransformerLayerInfer": {
        **LAYER_NORMS, **BIAS_WITHOUT_ROPE, **OUT_BIAS, **TWO_BIASES, "attention": "context_attention_fwd token_attention_fwd",
    },
    "chatglm2.ChatGLM2TransformerLayerInfer": {**WITH_BIAS, "ffn": "gate_up_proj.mm silu mul down_proj.mm"},
    "gemma_2b.Gemma_2bTransformerLayerInfer": {"ffn": "gate_up_proj.mm gelu_and_mul_fwd down_proj.mm"},
    "internlm.InternlmTransformerLayerInfer": {**WITH_BIAS, **OUT_BIAS},
    "internlm_wquant.InternlmTransformerLayerInferWquant": {
        **INT8, **INT8_BIAS, "o_proj": "matmul_dequantize_int8 truediv add_",
    },
    "internlm_xcomposer.InternlmComposerTransformerLayerInfer": {
        "qkv_proj": f"q_weight_.mm kv_bias_.kv_weight_.addmm qkv_loraA_weight_.mm q_loraB_weight_.mm kv_loraB_weight_.mm {LORA} "
                    "rotary_emb_fwd",
        "o_proj": f"o_weight_.mm wo_loraA_weight_.mm wo_loraB_weight_.mm {LORA}",
        "ffn": "gate_up_proj.mm gate_loraA_weight_.mm gate_loraB_weight_.mm up_loraA_weight_.mm up_loraB_weight_.mm silu_and_mul_fwd "
               f"down_proj.mm down_loraA_weight_.mm down_loraB_weight_.mm {LORA}",
    },
    "llama.LlamaTransformerLayerInfer": {},
    "llama_awquant.LlamaTransformerLayerInferAWquant": {
        "attn_norm": "skiprmsnorm_ppl", "ffn_norm": "skiprmsnorm_ppl",
        "qkv_proj": "matmul_i8_i32_ppl channel_token_dequant_i32_fp16_ppl setitem rotary_emb_fwd",
        "ffn": "matmul_i8_i32_ppl gatesilu_i32_i8_ppl channel_token_dequant_i32_fp16_ppl",
    },
    "llama_quik.LlamaTransformerLayerInferQuik": {
        "qkv_proj": "q_proj kv_proj rotary_emb_fwd", "o_proj": "o_proj", "ffn": "gate_up_proj silu_and_mul_fwd down_proj",
    },
    "llama_wquant.LlamaTransformerLayerInferWquant": {
        **INT8, "qkv_proj": "matmul_dequantize_int8 rotary_emb_fwd", "o_proj": "matmul_dequantize_int8",
    },
    "minicpm.InternlmTransformerLayerInfer": {**WITH_BIAS, **OUT_BIAS},
    "mistral.MistralTransformerLayerInfer": {},
    "mixtral.MixtralTransformerLayerInfer": {"ffn": "gate.mm softmax topk sum truediv mul mm silu mul_ add_"},
    "qwen.QwenTransformerLayerInfer": WITH_BIAS,
    "qwen2.Qwen2TransformerLayerInfer": WITH_BIAS,
    "qwen_wquant.QwenTransformerLayerInferWQuant": {**INT8, **INT8_BIAS, "o_proj": "matmul_dequantize_int8"},
    "stablelm.StablelmTransformerLayerInfer": {**LAYER_NORMS, **WITH_BIAS},
    "starcoder.StarcoderTransformerLayerInfer": {**LAYER_NORMS, **BIAS_WITHOUT_ROPE, **OUT_BIAS, **TWO_BIASES},
    "starcoder2.Starcoder2TransformerLayerInfer": {**LAYER_NORMS, **WITH_BIAS, **OUT_BIAS, **TWO_BIASES},
    "starcoder_wquant.StarcoderTransformerLayerInferWQuant": {
        **LAYER_NORMS, "qkv_proj": "matmul_dequantize_int8 q_bias_.add_ kv_bias_.add_", "o_proj": "matmul_dequantize_int8 o_bias_.add_",
        "ffn": "matmul_dequantize_int8 ffn_1_bias_.add_ gelu ffn_2_bias_.add_",
    },
    "bloom.BloomPreLayerInfer": {"embedding": f"{DENSE_2024['embedding']} layernorm_forward"},
    "gemma_2b.Gemma_2bPreLayerInfer": {"embedding": f"{DENSE_2024['embedding']} mul"},
    "llama.LlamaPreLayerInfer": {},
    "qwen_vl.LlamaMultimodalPreLayerInfer": {"embedding": f"{DENSE_2024['embedding']} multimodal_emb truediv"},
    "starcoder.StarcoderPreLayerInfer": {"embedding": f"{DENSE_2024['embedding']} wpe_weight_.embedding add"},
    "bloom.BloomPostLayerInfer": {
        "lm_head": "cumsum sub index setitem layernorm_forward lm_head_weight_.mm contiguous float reshape",
    },
    "llama.LlamaPostLayerInfer": {},
}  # fmt: skip

# Classes that do not run, and why.
VISION = "encodes images in a process of its own, without the functions of a language model's layer"
NEVER_RUN = dict.fromkeys(("vit.ViTTransformerLayerInfer", "vit.ViTPreLayerInfer", "vit.ViTPostLayerInfer"), VISION)
NOT_RUN = {
    ("v1.2.0", "tpsp", "gemma4.Gemma4PreLayerInfer"): "LightLLM refuses to split the tokens of a gemma4 with embeddings of each layer",
    ("v1.1.0", "tp2", "gemma3.Gemma3PreLayerInfer"): "its all_reduce names torch's dist, which is another function, for its operation",
}  # fmt: skip
