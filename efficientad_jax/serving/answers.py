"""The response to an image: JSON, a heat map as PNG, or the anomaly map as NPY."""

import io
import json
from collections.abc import Callable

import mimeparse
import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from efficientad_jax.data.decoding import resize_map
from efficientad_jax.detection.heatmap import HIGH, LOW, encode_heat
from efficientad_jax.detection.threshold import RegionRule, Threshold, score_fields
from efficientad_jax.serving.scoring import Scored

_JSON = "application/json"
MAP_TYPES = {"png": "image/png", "npy": "application/x-npy"}


def response_type(request: Request) -> str:
    """The media type of the response: that of `?map=`, else the one the Accept header prefers.

    Raises:
      HTTPException: 400 for an unknown `?map=`, 406 if the Accept header has none of the types.
    """
    name = request.query_params.get("map")
    if name is not None:
        if name not in MAP_TYPES:
            raise HTTPException(400, f"map={name!r}: expected {' or '.join(MAP_TYPES)}")
        return MAP_TYPES[name]
    accept = request.headers.get("accept") or "*/*"
    # If the client prefers several types equally, `best_match` returns the last of them.
    supported = [*MAP_TYPES.values(), _JSON]
    try:
        best = mimeparse.best_match(supported, accept)
    except mimeparse.MimeTypeParseException:
        best = ""
    if not best:
        raise HTTPException(406, f"Accept: {accept[:100]!r}, expected {', '.join(supported)}")
    return best


def wants_regions(request: Request, media_type: str) -> bool:
    """Whether the response is to have the regions: by `?regions=`, else only as JSON.

    Args:
      request: of the image.
      media_type: as `response_type` returns it.

    Raises:
      HTTPException: 400 for another value than true and false.
    """
    value = request.query_params.get("regions")
    if value is None:
        return media_type == _JSON
    if value not in ("true", "false"):
        raise HTTPException(400, f"regions={value!r}: expected true or false")
    return value == "true"


def create_response(
    media_type: str,
    scored: Scored,
    threshold: Threshold | None,
    *,
    size: tuple[int, int],
    enlarge: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = resize_map,
    region_rule: RegionRule | None = None,
) -> Response:
    """The response for one image. Takes long for a large map: call it outside of the event loop.

    Args:
      media_type: as `response_type` returns it. With a map, the headers `X-Anomaly-Score`,
        `X-Anomaly-Verdict` and `X-Anomaly-Threshold` hold score and verdict as JSON values.
      scored: score and map of the image.
      threshold: of the detector.
      size: height and width of the image in pixels, to which the map is resized.
      enlarge: resizes the map to the image.
      region_rule: finds the regions, which JSON lists and a heat map shows as boxes; None for none.
    """
    height, width = size
    fields = score_fields(threshold, scored.score)
    is_json = media_type == _JSON
    if is_json and region_rule is None:
        return JSONResponse(fields | {"regions": None, "height": height, "width": width})
    resized = enlarge(scored.anomaly_map, size)
    regions = () if region_rule is None else region_rule.find(resized)
    if is_json:
        found = [region.as_dict() for region in regions]
        return JSONResponse(fields | {"regions": found, "height": height, "width": width})
    headers = {f"X-Anomaly-{name.capitalize()}": json.dumps(fields[name]) for name in fields}
    if media_type == MAP_TYPES["png"]:
        content = encode_heat(resized, LOW, HIGH, boxes=[region.box for region in regions])
    else:
        encoded = io.BytesIO()
        np.save(encoded, resized)
        content = encoded.getvalue()
    return Response(content, media_type=media_type, headers=headers)
