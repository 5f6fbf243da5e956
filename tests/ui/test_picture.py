import base64
import io

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

from peft_space.ui.picture import data_url, read_data_url


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_picture_comes_back_as_it_was(picture):
    assert read_data_url(data_url(picture), 10**6).tobytes() == picture.tobytes()
    assert read_data_url(None, 1) is None and read_data_url("", 1) is None


def test_a_picture_comes_upright_and_in_rgb(picture):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("CMYK", (20, 10)).save(file, "JPEG", exif=exif)
    read = read_data_url(url(file.getvalue(), "image/jpeg"), 10**6)
    assert read.size == (10, 20) and read.mode == "RGB"


def test_a_size_is_kept_to_the_byte(picture):
    file = io.BytesIO()
    picture.save(file, "BMP")
    data = file.getvalue()
    assert read_data_url(url(data), len(data)).size == (48, 48)
    with pytest.raises(ValueError, match=r"`picture` must have at most 0.00\d+ MB; got 0.0 MB"):
        read_data_url(url(data), len(data) - 3)


def test_a_decompression_bomb():
    file = io.BytesIO()
    Image.new("1", (20000, 10000)).save(file, "PNG")
    assert len(file.getvalue()) < 10**5
    with pytest.raises(ValueError, match=r"`picture` can't be read: .*(decompression bomb|DecompressionBomb)"):
        read_data_url(url(file.getvalue()), 10**6)


@pytest.mark.parametrize(
    "value",
    [
        url(b"no picture"),
        url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "data:image/png;base64,%%%",
        "data:image/png;base64,",
        "data:,text",
        "/etc/passwd",
        "https://example.com/a.png",
    ],
)
def test_what_is_no_picture(value):
    with pytest.raises(ValueError, match=r"`picture` (can't be read|must be a picture in a data URL)"):
        read_data_url(value, 10**6)
