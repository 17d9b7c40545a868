/** Each part of the long mode selects tests. A part that selects none would pass without testing anything. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { commandOf, PARTS, ROOT } from './long-parts.js'

test('each part of the long mode names a file and tests in it', () => {
  for (const { name, file, only } of PARTS) {
    const text = readFileSync(join(ROOT, file), 'utf8')
    expect(text, name).toContain(only ?? 'amount.js')
    expect(text, `${name} has a long mode`).toContain('amount.js')
  }
  expect(new Set(PARTS.map(({ name }) => name)).size).toBe(PARTS.length)
})

test('each part of the long mode is a command', () => {
  const crash = PARTS.find(({ name }) => name === 'crash-10031-10060')!
  expect(commandOf(crash)).toBe(
    "SLUICE_LONG=1 SLUICE_SEEDS=10031-10060 npx vitest run test/simulation/crash.test.ts -t 'recovers from'",
  )
})
