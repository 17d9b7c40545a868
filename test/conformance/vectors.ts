/**
 * The golden vectors: bytes written by hand from docs/PROTOCOL.md, never by our own encoder. In `hex`, bytes are
 * separated by spaces. The tests of this folder use the vectors.
 */
import { readFileSync } from 'node:fs'
import { FrameDecoder } from '@sluice/protocol'

export interface Vector {
  readonly name: string
  readonly kind: 'preface' | 'frame' | 'record' | 'batch'
  readonly what: string
  readonly bytes: Uint8Array
}

export interface Frame {
  readonly opcode: number
  readonly flags: number
  readonly channel: number
  readonly correlation: number
  readonly payload: Uint8Array
}

type Written = Omit<Vector, 'bytes'> & { readonly hex: string }

export const VECTORS: readonly Vector[] = (
  JSON.parse(readFileSync(new URL('vectors.json', import.meta.url), 'utf8')) as Written[]
).map(({ name, kind, what, hex }) => ({ name, kind, what, bytes: fromHex(hex) }))

export const FRAME_VECTORS = VECTORS.filter(({ kind }) => kind === 'frame')

export function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.split(/\s+/), (byte) => {
    if (!/^[0-9a-f]{2}$/.test(byte)) throw new Error(`${JSON.stringify(byte)} is not a byte in hex`)
    return Number.parseInt(byte, 16)
  })
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

/** Pushes `chunks` into a decoder and returns the frames that came out, with copies of their payloads. */
export function framesOf(
  chunks: Iterable<Uint8Array>,
  { preface = false, frameBytesMax = 0x100_0000 } = {},
): Frame[] {
  const frames: Frame[] = []
  const decoder = new FrameDecoder((opcode, flags, channel, correlation, bytes, start, end) => {
    frames.push({ opcode, flags, channel, correlation, payload: bytes.slice(start, end) })
  }, preface)
  decoder.frameBytesMax = frameBytesMax
  for (const chunk of chunks) decoder.push(chunk)
  return frames
}
