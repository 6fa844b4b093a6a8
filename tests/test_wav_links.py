from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.protocol.wav_links import find_links

WAV = "https://h.example/a/x.wav"
BARE = "https://h.example/a/04e6"
MP3 = "https://h.example/a/x.mp3"


def text(value: object) -> str:
    """Return *value* as an answer quotes JSON."""
    return json.dumps(value)


READ = {
    "resultUrls": {"resultUrls": [WAV]},
    "resultUrls without an ending": {"resultUrls": [BARE]},
    "result_url": {"result_url": WAV},
    "resultUrl": {"resultUrl": f"{WAV}?sig=a%2Fb"},
    "downloadUrl": {"downloadUrl": BARE},
    "download_urls": {"download_urls": [WAV]},
    "outputFile": {"outputFile": WAV},
    "nested wavUrl": {"data": {"wavUrl": BARE}},
    "deep": {"a": {"b": [{"c": {"wav_url": WAV}}]}},
    "other spellings": {"WAV-URL": BARE},
    "wavFileUrl": {"wavFileUrl": BARE},
    "wav": {"wav": BARE},
    "below wav": {"wav": {"url": BARE}},
    "a list below wav": {"wavFiles": [{"url": BARE}]},
    "a list under a documented name": {"audioWavUrl": [BARE]},
    "an object under a documented name": {"audioWavUrl": {"url": BARE}},
    "below result": {"result": {"url": BARE}},
    "a list below result": {"results": [{"link": BARE}]},
    "musicWavUrl": {"musicWavUrl": BARE},
    "system": {"system": {"wavUrl": BARE}},
    "text": {"response": text({"wavUrl": WAV})},
    "text of a list": {"resultUrls": text([WAV])},
    "text in text": {"resultJson": text({"response": text({"resultUrls": [WAV]})})},
    "text with blanks": {"response": f" \n{text({'wavUrl': WAV})} "},
    "an URL with blanks": {"resultUrl": f" {WAV} "},
    "upper case": {"resultUrl": "HTTPS://H.example/X.WAV"},
    "url": {"url": WAV},
    "response": {"response": WAV},
    "a list": {"response": [WAV]},
    "the same twice": {"url": WAV, "fileUrl": WAV},
    "beside the MP3": {"audioUrl": MP3, "resultUrls": [MP3, WAV]},
    "beside a preview": {"imageUrl": BARE, "streamUrl": WAV, "downloadUrl": WAV},
    "beside deep rubbish": {"x": text({"a": [{}]} | {"b": "[" * 60}), "resultUrl": WAV},
}


@pytest.mark.parametrize("data", READ.values(), ids=list(READ))
def test_what_can_only_be_the_wav_is_found(data):
    """Whatever it is called and however it is wrapped, a WAV's URL is found."""
    (link,) = {link.strip() for link in find_links({"code": 200, "data": data})}

    assert link in {WAV, BARE, f"{WAV}?sig=a%2Fb", "HTTPS://H.example/X.WAV"}


NOT_READ = {
    "callbackUrl": {"callbackUrl": WAV, "callBackUrl": WAV, "call_back_url": WAV},
    "webhook": {"webhookUrl": WAV},
    "audioUrl": {"audioUrl": WAV, "audio_url": BARE},
    "the MP3": {"audioUrl": MP3, "resultUrl": MP3, "wavUrl": MP3, "url": MP3},
    "the cover": {"imageUrl": BARE, "coverUrl": WAV, "resultImageUrl": BARE},
    "an image": {"resultUrls": ["https://h.example/a.JPEG?x=1"]},
    "the source": {"sourceUrl": WAV, "sourceAudioUrl": WAV, "originalWavUrl": WAV},
    "a stream": {"streamAudioUrl": WAV, "sourceStreamAudioUrl": WAV},
    "the request": {"param": text({"wavUrl": WAV, "url": WAV}), "input": {"url": WAV}},
    "uploads": {"uploadUrl": WAV},
    "the music": {"musicUrl": WAV, "sunoData": [{"url": WAV}], "music": {"wavUrl": WAV}},
    "another audio below result": {"result": {"audioUrl": BARE, "musicUrl": WAV}},
    "the WAV of stems": {"stemWavUrl": WAV, "vocalWavUrl": WAV},
    "a waveform": {"waveformUrl": BARE},
    "stems": {"vocalUrl": WAV, "instrumentalUrl": WAV},
    "words": {"errorMessage": WAV, "msg": WAV, "failMsg": WAV},
    "url without an ending": {"url": BARE, "fileUrl": BARE},
    "several": {"url": WAV, "fileUrl": "https://h.example/other.wav"},
    "another audio below wav": {"wav": {"audioUrl": BARE, "image": BARE}},
    "no URL": {"resultUrls": ["x.wav", 5, None, "ftp://h/x.wav", "//h/x.wav"]},
    "a host like a file": {"url": "https://x.wav"},
    "a query like a file": {"url": "https://h.example/get?file=x.wav"},
    "a name twice in text": {"response": text({"wavUrl": WAV})[:-1] + ', "wavUrl": "x"}'},
    "broken text": {"response": '{"wavUrl": "' + WAV},
    "text nested too deep": {"resultUrls": "[" * 60 + text(WAV) + "]" * 60},
}


@pytest.mark.parametrize("data", NOT_READ.values(), ids=list(NOT_READ))
def test_what_may_be_something_else_is_not(data):
    """A URL that may be the callback's, the MP3's, the source's or a picture's is left alone."""
    assert [] == find_links({"code": 200, "data": data})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"resultUrls": [BARE, WAV]}, [WAV, BARE]),
        ({"downloadUrl": WAV, "wavUrl": BARE}, [BARE, WAV]),
        ({"url": WAV, "resultUrl": BARE}, [BARE, WAV]),
        ({"wav": {"url": BARE}, "wavUrl": WAV}, [WAV, BARE]),
    ],
)
def test_the_likeliest_comes_first(data, expected):
    """A name that says WAV goes before one that says result, and that before any other."""
    assert expected == find_links({"data": data})


def test_a_huge_answer_is_not_searched_to_its_end():
    """What stands behind a thousand values is not the service's."""
    assert [WAV] == find_links({"x": [0] * 900, "y": {"wavUrl": WAV}})
    assert [] == find_links({"x": [0] * 1_000, "y": {"z": {"wavUrl": WAV}}})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([WAV, BARE, MP3, "{"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.sampled_from(["wavUrl", "param", "url"]), inner)
        | inner.map(json.dumps)
    ),
    max_leaves=20,
)


@given(data=st.dictionaries(st.text(), _JSON))
def test_whatever_the_answer_there_is_a_list(data):
    """Nothing in an answer makes it raise, and nothing is found that is not a URL."""
    assert all(link.strip().lower().startswith(("http:", "https:")) for link in find_links(data))
