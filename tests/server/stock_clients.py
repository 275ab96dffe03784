"""Several stock clients at once, as a program of their own: one line of JSON for each answer.

python -m tests.server.stock_clients URL REQUESTS AT_ONCE
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

import openai
from PIL import Image

from tests.runtime.demo import PICTURE, WORDS


def picture_hash(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def main(url: str, requests: int, at_once: int) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
    picture = PICTURE.read_bytes()

    def edit(seed: int) -> tuple[int, str]:
        try:
            answer = client.images.edit(image=picture, prompt=WORDS, extra_body={"seed": seed})
            content = base64.b64decode(answer.data[0].b64_json)
            return seed, picture_hash(Image.open(io.BytesIO(content)))
        except openai.OpenAIError as error:
            return seed, f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(edit, seed) for seed in range(requests)]):
            print(json.dumps(done.result()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
