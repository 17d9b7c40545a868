/** Confirms and deliveries follow the durable write of their batch, as system calls show. */
import {
  OP,
  PUBLISH_OK_ITEM_BYTES,
  encodePreface,
  stampBatch,
  writePublishOkItem,
  writeU32,
} from '@sluice/protocol'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { batch, frame } from '../rig/frames.js'
import { scratchDirectory } from '../rig/scratch.js'
import { readTrace, straceIsMissing } from './strace.js'
import { traceSummary, traceUnderLoad } from './trace.js'

const missing = straceIsMissing()
const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)
const MESSAGES = 3_000

test.skipIf(missing !== undefined)(
  `every confirm and delivery follows the durable write of its batch${missing === undefined ? '' : `: skipped, ${missing}`}`,
  async () => {
    const report = await traceUnderLoad({ messages: MESSAGES, seed: SEED })
    console.log(`${traceSummary(report)}, seed ${SEED}`)
    expect(report.violations).toEqual([])
    expect(report.confirms).toBe(report.durableBatches)
    expect(report.confirms).toBeGreaterThan(30)
    expect(report.deliveries).toBe(MESSAGES)
    expect(report.failure).toBeUndefined()
  },
  60_000,
)

test('a broker that confirms too early would be found', async () => {
  const hex = (bytes: Uint8Array): string =>
    `"${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}"`
  const ok = new Uint8Array(PUBLISH_OK_ITEM_BYTES)
  writePublishOkItem(ok, 0, 7, 40)
  const confirm = frame(OP.PUBLISH_OK, 0, 0, ok)
  const messages = batch(7, [{ payload: Uint8Array.of(1, 2, 3) }])
  stampBatch(messages, 0, 1, 40, 1_000, 1)
  const entry = new Uint8Array(512)
  entry.set(new TextEncoder().encode('SLEN'))
  writeU32(entry, 4, 64 + messages.length)
  writeU32(entry, 32, 1)
  entry.set(messages, 64)
  const opened =
    '1 10.1 openat(AT_FDCWD, "\\x61", O_RDWR|O_DSYNC|O_CLOEXEC) = 18\n1 10.2 accept4(20, NULL, NULL, SOCK_CLOEXEC) = 22\n' +
    `1 10.2 write(22, ${hex(encodePreface())}, 8) = 8\n`
  const wrote = `2 10.3 pwrite64(18, ${hex(entry)}, 512, 8192) = 512\n`
  const began = `2 10.3 pwrite64(18, ${hex(entry)}, 512, 8192 <unfinished ...>\n`
  const finished = '2 10.5 <... pwrite64 resumed>) = 512\n'
  const failed = '2 10.3 pwrite64(18, "\\x00", 1, 8192) = -1 EIO (Input/output error) (INJECTED)\n'
  const sent = `1 10.4 writev(22, [{iov_base=${hex(confirm.subarray(0, 9))}, iov_len=9}, {iov_base=${hex(confirm.subarray(9))}, iov_len=23}], 2) = 32\n`
  const inTwo = `1 10.4 write(22, ${hex(confirm.subarray(0, 20))}, 20) = 20\n${wrote}1 10.6 write(22, ${hex(confirm.subarray(20))}, 12) = 12\n`
  const histories: readonly (readonly [trace: string, whys: readonly string[]])[] = [
    [opened + wrote + sent, []],
    [opened + began + finished + sent, []],
    [opened + sent + wrote, ['its batch was not yet on disk']],
    [opened + began + sent + finished, ['its batch was not yet on disk']],
    [opened + inTwo, ['its batch was not yet on disk']],
    [opened + wrote + failed + sent, ['it left after a write had failed']],
  ]
  const scratch = await scratchDirectory('doctored')
  try {
    for (const [trace, whys] of histories) {
      const path = join(scratch.path, 'trace')
      await writeFile(path, trace, 'latin1')
      const report = await readTrace(path)
      expect(report).toMatchObject({ confirms: 1, durableBatches: 1, durableWrites: 1 })
      expect(report.violations.map(({ why }) => why)).toEqual(whys)
    }
  } finally {
    await scratch.dispose()
  }
  expect(histories).toHaveLength(6)
})
