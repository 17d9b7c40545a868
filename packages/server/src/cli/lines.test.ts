import fc from 'fast-check'
import { expect, test } from 'vitest'
import { linesOf } from './lines.js'

async function* chunked(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0
  for (let index = 0; at < bytes.length; index++) {
    const size = sizes[index % sizes.length]!
    yield bytes.subarray(at, at + size)
    at += size
  }
}

async function collect(bytes: Uint8Array, sizes: readonly number[], lineBytesMax = 1000): Promise<string[]> {
  const lines: string[] = []
  for await (const some of linesOf(chunked(bytes, sizes), lineBytesMax)) {
    for (const line of some) lines.push(Buffer.from(line).toString('latin1'))
  }
  return lines
}

test('the lines do not depend on how the stream is cut', async () => {
  const text = fc.array(fc.constantFrom('a', 'bc', '\n', '\r\n', '\u00ff')).map((parts) => parts.join(''))
  const sizes = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 5 })
  await fc.assert(
    fc.asyncProperty(text, sizes, async (text, sizes) => {
      const expected = text.split('\n')
      if (expected.at(-1) === '') expected.pop()
      expect(await collect(Buffer.from(text, 'latin1'), sizes)).toEqual(expected)
    }),
  )
})

test('a line can be as long as the limit, and one byte more is refused, with or without a newline', async () => {
  expect(await collect(Buffer.from('ok\nabcd\nabcd'), [3], 4)).toEqual(['ok', 'abcd', 'abcd'])
  await expect(collect(Buffer.from('ok\nabcde\n'), [3], 4)).rejects.toMatchObject({
    code: 'INVALID_BODY',
    message: 'Line 2 is longer than 4B.',
  })
  await expect(collect(Buffer.from('abcde'), [100], 4)).rejects.toThrow('Line 1 is longer than 4B.')
})
