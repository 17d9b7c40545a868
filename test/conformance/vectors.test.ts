import { OPCODES, SluiceError, checkBatch, checkRecords, opcodeName } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import { CASES } from './cases.js'
import { READERS, readBatch, readRecords } from './payloads.js'
import { FRAME_VECTORS, VECTORS, framesOf, type Vector } from './vectors.js'
import { expectSame } from '../same.js'

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

function read({ kind, bytes }: Vector): unknown {
  if (kind === 'preface') return framesOf([bytes], { preface: true })[0]
  if (kind === 'record') return readRecords(bytes, 0, bytes.length, 1)[0]
  if (kind === 'batch') return readBatch(bytes, 0, bytes.length)
  const [frame] = framesOf([bytes])
  return READERS.get(frame!.opcode)!(frame!.payload, 0, frame!.payload.length)
}

/** Runs `reading` and returns either its error or its value. */
function attempt(reading: () => unknown): { error: unknown; value: unknown } {
  try {
    return { error: undefined, value: reading() }
  } catch (error) {
    return { error, value: undefined }
  }
}

describe('golden vectors', () => {
  test('each vector has one case, and each case has one vector', () => {
    expect(VECTORS.map(({ name }) => name).sort()).toStrictEqual(Object.keys(CASES).sort())
    expect(new Set(VECTORS.map(({ name }) => name)).size).toBe(VECTORS.length)
    expect(VECTORS.length).toBeGreaterThanOrEqual(110)
  })

  test('every frame kind has a vector and a reader', () => {
    const seen = new Set(FRAME_VECTORS.map(({ bytes }) => opcodeName(bytes[4]!)))
    const expected = Object.keys(OPCODES)
    expect(seen).toStrictEqual(new Set(expected))
    expect(READERS.size).toBe(expected.length)
    expect(expected).toHaveLength(59)
  })

  test.each(VECTORS)('our encoder writes $name', ({ name, bytes }) => {
    expect(hex(CASES[name]!.bytes)).toBe(hex(bytes))
  })

  test.each(VECTORS)('our decoder reads $name', (vector) => {
    expect(read(vector)).toStrictEqual(CASES[vector.name]!.value)
  })

  test('a frame vector is exactly one frame with its header read', () => {
    for (const { name, bytes } of FRAME_VECTORS) {
      const frames = framesOf([bytes])
      expect(frames, `of ${name}`).toHaveLength(1)
      expect(frames[0]!.opcode, `of ${name}`).toBe(bytes[4])
      expect(frames[0]!.flags, `of ${name}`).toBe(0)
      expect(frames[0]!.channel, `of ${name}`).toBe(bytes[6]! + bytes[7]! * 256)
      expect(hex(frames[0]!.payload), `of ${name}`).toBe(hex(bytes.subarray(12)))
    }
  })
})

const CUT_OFF: ReadonlySet<string> = new Set(['MALFORMED_FRAME', 'BATCH_MALFORMED', 'BATCH_CORRUPT'])

describe('cut off at every byte', () => {
  test('the unfinished frame of a stream that ends early is not emitted, and there is no error', () => {
    let cuts = 0
    for (const { kind, bytes } of VECTORS) {
      if (kind !== 'frame' && kind !== 'preface') continue
      for (let end = 0; end < bytes.length; end++) {
        expectSame(framesOf([bytes.subarray(0, end)], { preface: kind === 'preface' }).length, 0)
        cuts++
      }
    }
    expect(cuts).toBe(bytesOf('frame') + bytesOf('preface'))
  })

  // A list ends where its frame ends, so a payload that is cut between two items decodes as a shorter list.
  test('a truncated payload gives a typed error, or a list without its last items', () => {
    let cuts = 0
    const shorter: string[] = []
    for (const { name, bytes } of FRAME_VECTORS) {
      const reader = READERS.get(bytes[4]!)!
      const payload = bytes.subarray(12)
      for (let end = 0; end < payload.length; end++) {
        const { error, value } = attempt(() => reader(payload, 0, end))
        if (error === undefined) {
          expect(withoutLast(CASES[name]!.value, value), `${name} cut to ${end} bytes`).toStrictEqual(value)
          shorter.push(name)
        } else {
          if (!(error instanceof SluiceError && CUT_OFF.has(error.code)))
            expect(error, `${name} cut to ${end} bytes`).toMatchObject({ code: 'MALFORMED_FRAME' })
        }
        cuts++
      }
    }
    expect(cuts).toBe(bytesOf('frame') - 12 * FRAME_VECTORS.length)
    expect(shorter).toStrictEqual([
      'PUBLISH_OK',
      ...Array<string>(3).fill('PUBLISH_OK of three'),
      'PUBLISH_OK with a replaced message',
      'SUBSCRIBE_OK with a grant',
      'STARTED',
      ...Array<string>(2).fill('STARTED, two ranges'),
      'STARTING',
      'SETTLE',
      ...Array<string>(5).fill('SETTLE, all outcomes'),
      'SETTLE, invalid',
      'SETTLE, pausing the key',
      'SETTLE_OK with a stale range',
      ...Array<string>(2).fill('LEASES_LOST'),
    ])
  })

  test('a payload with bytes after its end gives a typed error, except where they are allowed', () => {
    const allowed: string[] = []
    for (const { name, bytes } of FRAME_VECTORS) {
      const payload = Uint8Array.from([...bytes.subarray(12), 0])
      const { error, value } = attempt(() => READERS.get(bytes[4]!)!(payload, 0, payload.length))
      if (error === undefined) {
        expect(value).toStrictEqual(CASES[name]!.value)
        allowed.push(name)
      } else {
        expect(error, `of ${name}`).toBeInstanceOf(SluiceError)
      }
    }
    expect(allowed).toStrictEqual(['HELLO', 'HELLO of a reconnect', 'HELLO_OK'])
  })

  test('a truncated record is refused', () => {
    let cuts = 0
    for (const { kind, bytes, name } of VECTORS) {
      if (kind !== 'record') continue
      for (let end = 0; end < bytes.length; end++) {
        expect(checkRecords(bytes, 0, end, 1, 1000), `of ${name}`).toMatchObject({ code: 'BATCH_MALFORMED' })
        cuts++
      }
    }
    expect(cuts).toBe(bytesOf('record'))
  })

  test('a truncated batch is refused', () => {
    let cuts = 0
    for (const { kind, bytes, name } of VECTORS) {
      if (kind !== 'batch') continue
      for (let end = 0; end < bytes.length; end++) {
        const { error } = attempt(() => checkBatch(bytes, 0, end))
        expect(error, `of ${name}`).toMatchObject({ code: 'BATCH_MALFORMED' })
        cuts++
      }
    }
    expect(cuts).toBe(bytesOf('batch'))
  })
})

function bytesOf(kind: Vector['kind']): number {
  let bytes = 0
  for (const vector of VECTORS) if (vector.kind === kind) bytes += vector.bytes.length
  return bytes
}

/** `whole` with each list in it truncated to the length that it has in `part`. */
function withoutLast(whole: unknown, part: unknown): unknown {
  if (typeof whole !== 'object' || whole === null) return whole
  return Object.fromEntries(
    Object.entries(whole).map(([name, value]) => {
      const cut = (part as Record<string, unknown>)[name]
      return [name, Array.isArray(value) && Array.isArray(cut) ? value.slice(0, cut.length) : value]
    }),
  )
}
