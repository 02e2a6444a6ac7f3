"""Pillow reads and writes ``.rdq``: what it finds after ``import rdquant``.

``Image.open`` looks at the header alone; pixels are decoded, with the zoo's model that the file names, when
they are wanted; ``info`` has the colour profile and EXIF that the file carries. ``image.save("x.rdq",
quality=60, model=..., effort=..., colour="srgb")`` takes the options of `rdquant.encode`.
"""

from __future__ import annotations

from typing import IO, Any

from PIL import Image, ImageFile

#: of ``image.save``
OPTIONS = (
    "model", "quality", "quantizer", "effort", "colour", "background", "exif", "target_bpp", "target_size",
)  # fmt: skip


def _ours(prefix: bytes) -> bool:
    from .files.container import MAGIC

    return prefix.startswith(MAGIC)


class RdqImageFile(ImageFile.ImageFile):
    """A picture of which the header is read. Damage is an `OSError`, as of Pillow's own formats."""

    format = "RDQ"
    format_description = "rdquant learned codec"

    def _open(self) -> None:
        from .errors import RdquantError
        from .files.container import Section, read

        assert self.fp is not None
        self._data = self.fp.read()
        try:
            header, _ = read(self._data)
        except RdquantError as error:
            raise OSError(str(error)) from error
        self._mode, self._size = "RGB", (header.width, header.height)
        self.info["fingerprint"] = header.fingerprint.hex()
        if header.quality is not None:
            self.info["quality"] = header.quality / 100
        for kind, name in ((Section.ICC, "icc_profile"), (Section.EXIF, "exif")):
            if content := header.section(kind):
                self.info[name] = content

    def load(self) -> Any:
        if self._data:
            from .errors import RdquantError
            from .front import decode

            try:
                self.im = Image.fromarray(decode(self._data)).im
            except RdquantError as error:
                raise OSError(str(error)) from error
            self._data = b""
        return Image.Image.load(self)


def _save(image: Image.Image, handle: IO[bytes], filename: str | bytes) -> None:
    from .front import encode

    options = {k: v for k, v in image.encoderinfo.items() if k in OPTIONS}
    handle.write(encode(image, **options))


def register() -> None:
    Image.register_open(RdqImageFile.format, RdqImageFile, _ours)
    Image.register_save(RdqImageFile.format, _save)
    Image.register_extension(RdqImageFile.format, ".rdq")
    Image.register_mime(RdqImageFile.format, "image/x-rdq")
