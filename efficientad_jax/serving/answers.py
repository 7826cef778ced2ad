"""The three forms of an answer: JSON, a PNG heat map, the map as NPY."""

import io
import json

import mimeparse
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from efficientad_jax.detection.heatmap import HIGH, LOW, encode_heat
from efficientad_jax.detection.maps import resize_map
from efficientad_jax.detection.threshold import Threshold, score_fields
from efficientad_jax.serving.scoring import Scored

_JSON = "application/json"
MAP_TYPES = {"png": "image/png", "npy": "application/x-npy"}


def chosen_type(request: Request) -> str:
    """The media type of the answer: what `?map=` says, else what the Accept header prefers.

    Raises:
      HTTPException: 400 for another `?map=`, 406 for an Accept header that has none of the types.
    """
    wanted = request.query_params.get("map")
    if wanted is not None:
        if wanted not in MAP_TYPES:
            raise HTTPException(400, f"map={wanted!r}: expected {' or '.join(MAP_TYPES)}")
        return MAP_TYPES[wanted]
    accept = request.headers.get("accept") or "*/*"
    # The last is taken where several are as welcome.
    supported = [*MAP_TYPES.values(), _JSON]
    try:
        found = mimeparse.best_match(supported, accept)
    except mimeparse.MimeTypeParseException:
        found = ""
    if not found:
        raise HTTPException(406, f"Accept: {accept[:100]!r}, expected {', '.join(supported)}")
    return found


def create_answer(
    media_type: str, scored: Scored, threshold: Threshold | None, size: tuple[int, int]
) -> Response:
    """The answer for one image. Takes time for a large map.

    Args:
      media_type: of `chosen_type`. With a map, score and verdict are in the headers
        `X-Anomaly-Score`, `X-Anomaly-Verdict` and `X-Anomaly-Threshold`, as JSON values.
      scored: what the detector found.
      threshold: the detector's.
      size: height and width of the image, which its map gets.
    """
    height, width = size
    fields = score_fields(threshold, scored.score)
    if media_type == _JSON:
        return JSONResponse(fields | {"height": height, "width": width})
    headers = {f"X-Anomaly-{name.capitalize()}": json.dumps(fields[name]) for name in fields}
    resized = resize_map(scored.anomaly_map, size)
    if media_type == MAP_TYPES["png"]:
        content = encode_heat(resized, LOW, HIGH)
    else:
        encoded = io.BytesIO()
        np.save(encoded, resized)
        content = encoded.getvalue()
    return Response(content, media_type=media_type, headers=headers)
