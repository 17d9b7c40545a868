/** Splits a byte stream into lines, chunk by chunk, so that memory is bounded by the longest line. */
import { SluiceError, sizeText } from '@sluice/protocol'

const NEWLINE = 10

/**
 * Yields the lines that each chunk completes, without their newline. Text after the last newline is a line too. The
 * bytes of these lines are valid until the lines of the next chunk are requested.
 * @throws SluiceError INVALID_BODY naming the line that is longer than `lineBytesMax`
 */
export async function* linesOf(
  chunks: AsyncIterable<Uint8Array>,
  lineBytesMax: number,
): AsyncGenerator<Uint8Array[], undefined> {
  let rest: Uint8Array[] = []
  let restBytes = 0
  let count = 0
  const take = (part: Uint8Array): Uint8Array => {
    const line = restBytes === 0 ? part : Buffer.concat([...rest, part])
    rest = []
    restBytes = 0
    count++
    return line
  }
  const within = (bytes: number): void => {
    if (bytes <= lineBytesMax) return
    throw new SluiceError('INVALID_BODY', `Line ${count + 1} is longer than ${sizeText(lineBytesMax)}.`)
  }
  for await (const chunk of chunks) {
    const lines: Uint8Array[] = []
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      within(restBytes + end - start)
      lines.push(take(chunk.subarray(start, end)))
      start = end + 1
    }
    if (start < chunk.length) {
      rest.push(chunk.subarray(start))
      restBytes += chunk.length - start
      within(restBytes)
    }
    if (lines.length > 0) yield lines
  }
  if (restBytes > 0) yield [take(new Uint8Array(0))]
}
