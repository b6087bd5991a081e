"""Why types of models that people ask for are not accepted, in words they can act on. Free of torch.

What `tests.model_types.coverage` found; the page of models has a reason for every other type of transformers, too.
"""

ENCODERS = frozenset(
    {
        "albert", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
        "ernie", "esm", "longformer", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm",
        "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
    }
)  # fmt: skip
WITH_ENCODER = frozenset(
    {
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "led", "m2m_100", "marian", "mbart", "mt5", "mvp",
        "nllb-moe", "pegasus", "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "t5gemma2", "trocr", "udop", "umt5",
        "vision-encoder-decoder", "whisper",
    }
)  # fmt: skip
HANDED_ON = "its decoder layers hand on more than hidden states to the next (indices, routes), which is not followed"
FUSED = "its experts are fused in a way that is not known here"
OTHERS = {
    "gemma3n": "its layers take keys and values from other layers, and its towers need timm",
    "gemma3n_text": "its layers take keys and values from other layers",
    "glm_moe_dsa": HANDED_ON,
    "hy_v4": HANDED_ON,
    "zaya": HANDED_ON,
    "dbrx": FUSED,
    "jetmoe": FUSED,
    "muse_spark": FUSED,
    "recurrent_gemma": "its recurrent layers hold matrices for each head in one tensor, which no stage would touch",
    "mllama": "its layers of cross attention take no part where there is only text, so nothing can be measured of them",
}
ENCODER = (
    "it is an encoder: only models that write text, token by token (…ForCausalLM), are compressed"
)
ENCODER_DECODER = "it is an encoder-decoder: only models that are decoders alone are compressed"


def why_refused(model_type: object) -> str:
    """The reason; empty where none is known."""
    if model_type in ENCODERS:
        return ENCODER
    if model_type in WITH_ENCODER:
        return ENCODER_DECODER
    return OTHERS.get(str(model_type), "")
