import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { runProgram } from './program.js'
import { scratchDirectory } from '../rig/scratch.js'

const RECORDS = 4000
const TEST_MS_MAX = 130_000
const ROWS = ['published', 'confirmed', 'delivered', 'redelivered', 'acked', 'lost', 'out of order']
const PROGRAM = fileURLToPath(new URL('../dist/demo/run.js', import.meta.url))

function numberAt(name: string, stdout: string): number {
  const found = new RegExp(`^${name} +([\\d,]+) `, 'm').exec(stdout)
  return Number(found?.[1]?.replaceAll(',', ''))
}

test(
  'the demo loses nothing and leaves nothing behind',
  async () => {
    const scratch = await scratchDirectory('demo-test')
    try {
      const { exitCode, stdout, stderr } = await runProgram(
        PROGRAM,
        ['--records', String(RECORDS)],
        scratch.path,
        TEST_MS_MAX,
      )
      expect(exitCode, `${stdout}\n${stderr}`).toBe(0)
      const tally = Object.fromEntries(ROWS.map((name) => [name, numberAt(name, stdout)]))
      expect(tally).toMatchObject({
        published: RECORDS,
        confirmed: RECORDS,
        acked: RECORDS,
        lost: 0,
        'out of order': 0,
      })
      expect(tally['redelivered']).toBeGreaterThan(0)
      expect(tally['delivered']).toBeGreaterThanOrEqual(RECORDS)
      expect(stderr).toMatch(/killed worker 2.*\n(.*\n)*.*killed the broker/)
      expect(await readdir(scratch.path)).toEqual([])
    } finally {
      await scratch.dispose()
    }
  },
  TEST_MS_MAX,
)

test('the demo refuses a count of records that it does not have', async () => {
  const { exitCode, stdout, stderr } = await runProgram(
    PROGRAM,
    ['--records', '20001'],
    tmpdir(),
    TEST_MS_MAX,
  )
  expect(exitCode).toBe(2)
  expect(stdout).toBe('')
  expect(stderr).toBe('--records is 20001; it must be a whole number from 2000 to 20000.\n')
})
