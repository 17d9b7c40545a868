import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { runProgram } from '../demo/program.js'
import { scratchDirectory } from '../rig/scratch.js'

const FLOOD = 40
const TEST_MS_MAX = 70_000
/** Orders outside the flood: one of Ada, four about bad cards, the express order, and the order of the crash. */
const OTHERS = 7
const PROGRAM = fileURLToPath(new URL('../dist/store/run.js', import.meta.url))

test(
  'the store does everything once and leaves nothing behind',
  async () => {
    const scratch = await scratchDirectory('store-test')
    try {
      const run = await runProgram(PROGRAM, ['--flood', String(FLOOD)], scratch.path, TEST_MS_MAX)
      const { exitCode, stdout, stderr } = run
      expect(exitCode, `${stdout}\n${stderr}`).toBe(0)
      expect(stderr).toBe('')
      const [orders] = numbers(stdout, /closed: (\d+) orders/)
      expect(orders).toBeGreaterThanOrEqual(FLOOD + OTHERS)
      for (const step of ['charged', 'picked', 'mailed']) {
        expect(numbers(stdout, new RegExp(`^ok +(\\d+) of (\\d+) orders ${step}`, 'm'))).toEqual([
          orders,
          orders,
        ])
      }
      const [customers, pairs, broken] = numbers(
        stdout,
        /^ok +charged in order for each of (\d+) customers: (\d+) pairs of orders, (\d+)/m,
      )
      expect(customers).toBeGreaterThanOrEqual(FLOOD)
      expect(pairs).toBeGreaterThan(0)
      expect(broken).toBe(0)
      expect(numbers(stdout, /^ok +(\d+) dead letter, (\d+) redriven, (\d+) left/m)).toEqual([1, 1, 0])
      expect(numbers(stdout, /^ok +(\d+) reminder sent, (\d+) cancelled/m)).toEqual([1, orders! - 1])
      const [neighbours, of] = numbers(stdout, /^ok +(\d+) of its (\d+) neighbours/m)
      expect(neighbours).toBeGreaterThan(0)
      expect(of).toBe(neighbours)
      const [good, checks] = numbers(stdout, /^(\d+) of (\d+) checks passed/m)
      expect(checks).toBe(16)
      expect(good).toBe(checks)
      // Output to a pipe has no colour.
      expect(stdout).not.toContain('\x1b')
      expect(await readdir(scratch.path)).toEqual([])
    } finally {
      await scratch.dispose()
    }
  },
  TEST_MS_MAX,
)

test('the store refuses too small a flood', async () => {
  const { exitCode, stdout, stderr } = await runProgram(PROGRAM, ['--flood', '3'], tmpdir(), TEST_MS_MAX)
  expect(exitCode).toBe(2)
  expect(stdout).toBe('')
  expect(stderr).toBe('--flood is 3; it must be a whole number from 20 to 800.\n')
})

function numbers(text: string, pattern: RegExp): number[] {
  return [...(pattern.exec(text) ?? [])].slice(1).map(Number)
}
