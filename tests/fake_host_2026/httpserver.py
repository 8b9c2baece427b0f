"""The HTTP process: tokenises a request, gives it its number, hands it on, and yields what comes back."""

import asyncio

from fake_host import FinishStatus, HttpRequest, SamplingParams

from .machine import args, called_back, trouble


class ReqStatus:
    def __init__(self, group_request_id, multimodal_params, req_objs, start_time):
        self.lock = asyncio.Lock()
        self.event = asyncio.Event()
        self.out_token_info_list = []


class HttpServerManager:
    def __init__(self, args):
        self.args = args
        self.req_id_to_out_inf = {}
        self._last_id = 0

    def alloc_req_id(self, sampling_params):
        """Numbers go up in steps of 8; none is negative, and no health check comes through here."""
        self._last_id += 8
        sampling_params.group_request_id = self._last_id
        return self._last_id

    async def generate(
        self, prompt, sampling_params, multimodal_params, request, pd_upload_websocket=None, pd_event=None
    ):
        start_time = 0.0
        group_request_id = self.alloc_req_id(sampling_params)
        try:
            prompt_ids = await self._encode(prompt, multimodal_params, sampling_params)
            prompt_ids = await self._check_and_repair_length(prompt_ids, sampling_params)
            req_status = ReqStatus(group_request_id, multimodal_params, [], start_time)
            self.req_id_to_out_inf[group_request_id] = req_status
            results_generator = self._wait_to_token_package(
                start_time, prompt_ids, group_request_id, sampling_params, req_status, request
            )
            async for sub_req_id, request_output, metadata, finish_status in results_generator:
                yield sub_req_id, request_output, metadata, finish_status
        except (asyncio.CancelledError, BaseException) as e:
            await self.abort(group_request_id)
            raise e

    async def _encode(self, prompt, multimodal_params, sampling_params):
        if prompt == "too long":
            raise ValueError("the prompt is too long: a secret")
        return [ord(each) for each in prompt]

    async def _check_and_repair_length(self, prompt_ids, sampling_params):
        return prompt_ids

    async def _wait_to_token_package(
        self, start_time, prompt_ids, group_request_id, sampling_params, req_status, request
    ):
        for number in range(sampling_params.max_new_tokens):
            await asyncio.sleep(0)
            trouble()
            metadata = {"prompt_tokens": len(prompt_ids), "id": number}
            last = number + 1 == sampling_params.max_new_tokens
            yield group_request_id, f" {number}", metadata, FinishStatus("length" if last else None)

    async def abort(self, group_req_id):
        """A request that ends before its time; the marker that its client would get has no token."""
        called_back(("aborted", group_req_id))
        return True


async def serve(requests):
    """For each request (prompt, how many items its client takes, headers): what it got, or what was raised."""
    manager, answers = HttpServerManager(args), []
    for prompt, take, headers in requests:
        got, taken = [], 0
        generator = manager.generate(prompt, SamplingParams(), None, HttpRequest("/v1/messages", **dict(headers)))
        try:
            async for number, text, metadata, status in generator:
                got.append((number, text, sorted(metadata.items()), status.get_finish_reason()))
                taken += 1
                if taken == take:
                    await generator.aclose()
                    break
        except Exception as error:  # noqa: BLE001 - that is an answer as well
            got.append((type(error).__name__, str(error)))
        answers.append(got)
    return answers
