"""Models beside Llama's: one with linear attention, and a draft of speculation."""

from .base_att import LinearAttBackend
from .basemodel import TpPartBaseModel
from .layer_infer import Deepseek3MTPPreLayerInfer, Qwen3NextTransformerLayerInfer
from .req_manager import ReqManagerForMamba


class Qwen3NextTpPartModel(TpPartBaseModel):
    transformer_layer_infer_class = Qwen3NextTransformerLayerInfer

    def _init_req_manager(self):
        self.req_manager = ReqManagerForMamba(self.max_req_num, self.max_seq_length, None, linear_config=None)

    def _init_att_backend1(self):
        self.prefill_att_backend1 = LinearAttBackend(model=self)
        self.decode_att_backend1 = LinearAttBackend(model=self)


class Deepseek3MTPModel(TpPartBaseModel):
    """A draft: built after the main model, shares its memory and requests, and has graphs of its own."""

    is_mtp_draft_model = True
    pre_layer_infer_class = Deepseek3MTPPreLayerInfer

    def __init__(self, kvargs):
        self._pre_init(kvargs)
        super().__init__(kvargs)

    def _pre_init(self, kvargs):
        self.main_model = kvargs.pop("main_model")
        self.mtp_previous_draft_models = kvargs.pop("mtp_previous_draft_models")

    def _init_weights(self, start_layer_index=None):
        self.config["n_layer"] = 1
        super()._init_weights(0)

    def _init_req_manager(self):
        self.req_manager = self.main_model.req_manager

    def _init_mem_manager(self):
        self.mem_manager = self.main_model.mem_manager

    def _init_infer_layer(self, start_layer_index=None):
        previous = [self.main_model, *self.mtp_previous_draft_models]
        super()._init_infer_layer(start_layer_index=sum(len(each.layers_infer) for each in previous))


def get_model(model_cfg, model_kvargs):
    """Returns the model, and whether it takes images."""
    return (Qwen3NextTpPartModel if model_cfg["full_attention_interval"] > 1 else TpPartBaseModel)(model_kvargs), False
